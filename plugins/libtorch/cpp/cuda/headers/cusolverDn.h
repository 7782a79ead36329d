// Declares what c10d's header of ProcessGroupNCCL names of cuSOLVER and this folder does not use. In this build only.

#pragma once

#include <cusolver_common.h>
