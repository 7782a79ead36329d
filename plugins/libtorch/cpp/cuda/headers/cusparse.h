// Declares what c10d's header of ProcessGroupNCCL names of cuSPARSE and this folder does not use. In this build only.

#pragma once

typedef struct cusparseContext* cusparseHandle_t;
enum cusparseStatus_t : int;
const char* cusparseGetErrorString(cusparseStatus_t);
