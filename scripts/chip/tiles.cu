// One warp for each 16×16 part of a tile: a K loop of matrix instructions in order, from a zero fp32 accumulator.
// Built by hspi.silicon.chip with  nvcc -shared -arch=sm_XX; bf16 and tf32 need sm_80.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <cstdint>
using namespace nvcuda;

template <typename Element, typename Fragment, int DEPTH>
__global__ void product(const Element *a, const Element *b, float *c, int m, int k, int n) {
  const size_t t = blockIdx.z;
  a += t * m * k + blockIdx.y * 16 * (size_t)k;
  b += t * k * n + blockIdx.x * 16;
  c += t * m * n + blockIdx.y * 16 * (size_t)n + blockIdx.x * 16;
  wmma::fragment<wmma::matrix_a, 16, 16, DEPTH, Fragment, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, DEPTH, Fragment, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, DEPTH, float> acc;
  wmma::fill_fragment(acc, 0.0f);
  for (int at = 0; at < k; at += DEPTH) {
    wmma::load_matrix_sync(fa, a + at, k);
    wmma::load_matrix_sync(fb, b + (size_t)at * n, n);
    wmma::mma_sync(acc, fa, fb, acc);
  }
  wmma::store_matrix_sync(c, acc, n, wmma::mem_row_major);
}

template <typename Element, typename Fragment, int DEPTH>
int run(const void *a, const void *b, float *c, int count, int m, int k, int n) {
  const size_t na = (size_t)count * m * k * sizeof(Element), nb = (size_t)count * k * n * sizeof(Element);
  const size_t nc = (size_t)count * m * n * sizeof(float);
  void *da = nullptr, *db = nullptr, *dc = nullptr;
  cudaMalloc(&da, na);
  cudaMalloc(&db, nb);
  cudaMalloc(&dc, nc);
  cudaMemcpy(da, a, na, cudaMemcpyHostToDevice);
  cudaMemcpy(db, b, nb, cudaMemcpyHostToDevice);
  product<Element, Fragment, DEPTH><<<dim3(n / 16, m / 16, count), 32>>>((const Element *)da, (const Element *)db, (float *)dc, m, k, n);
  cudaMemcpy(c, dc, nc, cudaMemcpyDeviceToHost);
  cudaFree(da);
  cudaFree(db);
  cudaFree(dc);
  return (int)cudaGetLastError();
}

// Host arrays, row-major: a (count, m, k), b (count, k, n), c (count, m, n). Returns a CUDA error code, 0 for none.
extern "C" int tiles_fp16(const void *a, const void *b, float *c, int count, int m, int k, int n) {
  return run<half, half, 16>(a, b, c, count, m, k, n);
}
#ifdef HSPI_SM80
extern "C" int tiles_bf16(const void *a, const void *b, float *c, int count, int m, int k, int n) {
  return run<__nv_bfloat16, __nv_bfloat16, 16>(a, b, c, count, m, k, n);
}
extern "C" int tiles_tf32(const void *a, const void *b, float *c, int count, int m, int k, int n) {
  return run<float, wmma::precision::tf32, 8>(a, b, c, count, m, k, n);
}
#endif
