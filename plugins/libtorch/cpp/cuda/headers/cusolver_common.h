// Declares what c10d's header of ProcessGroupNCCL names of cuSOLVER and this folder does not use. In this build only.

#pragma once

typedef struct cusolverDnContext* cusolverDnHandle_t;
enum cusolverStatus_t : int;
