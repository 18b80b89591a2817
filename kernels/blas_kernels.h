// OpenBLAS chooses its kernels for the processor when it is loaded. A release that is older than
// the processor may not know it and takes those of 2004: right, and five times slower than need be
// (Debian 12 on Intel processors of 2023).
#pragma once

namespace qpipe {

// Starts the program anew, with OPENBLAS_CORETYPE set to kernels that the processor has
// instructions for, where OpenBLAS has chosen such old ones and the variable does not say so.
// Returns otherwise, or when the program cannot be started. The first call of main().
void restart_with_better_blas_kernels(char** argv);

}  // namespace qpipe
