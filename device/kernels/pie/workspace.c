// SPDX-License-Identifier: Apache-2.0
// The workspaces. They must lie in memory that can be executed at TVIT_EXECUTABLE_OFFSET and, for full speed, in
// another block of SRAM than the activations (IDEAS.md).
#include "workspace.h"

#ifndef TVIT_WORKSPACE_SECTION
#define TVIT_WORKSPACE_SECTION
#endif

tvit_pie_workspace tvit_pie_workspaces[TVIT_MAX_CORES] TVIT_WORKSPACE_SECTION;
