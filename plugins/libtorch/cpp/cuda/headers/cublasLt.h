// Declares what c10d's header of ProcessGroupNCCL names of cuBLASLt and this folder does not use. In this build only.

#pragma once

typedef struct cublasLtContext* cublasLtHandle_t;
