// Closes what avx512_begin.h opened.
}  // namespace avx512
}  // namespace mrcnn_ext

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif
