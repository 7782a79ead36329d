// nccl.h includes it and uses nothing of it. In this build only.

#pragma once
