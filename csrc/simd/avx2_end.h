// Closes what avx2_begin.h opened.
}  // namespace avx2
}  // namespace mrcnn_ext

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif
