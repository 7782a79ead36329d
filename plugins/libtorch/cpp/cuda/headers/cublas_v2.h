// Declares what c10d's header of ProcessGroupNCCL names of cuBLAS and this folder does not use. In this build only.

#pragma once

typedef struct cublasContext* cublasHandle_t;
enum cublasStatus_t : int;
