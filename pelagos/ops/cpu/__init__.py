"""Native CPU kernels: wrappers that check arguments and allocate results, around the compiled module ``_native``."""
