// SPDX-License-Identifier: Apache-2.0
// Does the machine do what the vector kernels rely on? The chip does; emulators of it may not, and then run the
// portable kernels.
#ifndef ESP_IDF_PROBE_H
#define ESP_IDF_PROBE_H

// To be called before the first model is loaded, by the task that will run the kernels. NULL, or what does not hold.
const char *probe_vector_kernels(void);

#endif
