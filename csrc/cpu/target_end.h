// Ends what target_avx2.h or target_avx512.h began.
#if DVAE_HAVE_TARGET && defined(__clang__)
#pragma clang attribute pop
#elif DVAE_HAVE_TARGET
#pragma GCC pop_options
#endif
