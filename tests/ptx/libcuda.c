/* As much of CUDA's driver as Triton's launcher needs: one device, of which launches are handed to a function. */

#include "cuda.h"

typedef int (*Launched)(void *function, const unsigned grid[3], unsigned threads, unsigned shared, int cooperative,
                        void **parameters);

static Launched launched;
static long functions;

void hand_launches_to(Launched function) { launched = function; }

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  const unsigned grid[3] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  int cooperative = 0;
  for (unsigned number = 0; number < config->numAttrs; ++number)
    if (config->attrs[number].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
      cooperative = config->attrs[number].value.cooperative;
  return launched(function, grid, config->blockDimX, config->sharedMemBytes, cooperative, parameters)
             ? CUDA_ERROR_LAUNCH_FAILED
             : CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)++functions;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
  default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = "the launch failed";
  return CUDA_SUCCESS;
}

#define SUCCEEDS(name, ...) \
  CUresult name(__VA_ARGS__) { return CUDA_SUCCESS; }

SUCCEEDS(cuInit, unsigned flags)
SUCCEEDS(cuModuleLoadData, CUmodule *module, const void *image)
SUCCEEDS(cuModuleUnload, CUmodule module)
SUCCEEDS(cuCtxGetDevice, CUdevice *device)
SUCCEEDS(cuCtxSetCurrent, CUcontext context)
SUCCEEDS(cuCtxGetLimit, size_t *value, CUlimit limit)
SUCCEEDS(cuCtxSetLimit, CUlimit limit, size_t value)
SUCCEEDS(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice device)
SUCCEEDS(cuDriverGetVersion, int *version)
SUCCEEDS(cuFuncSetAttribute, CUfunction function, CUfunction_attribute attribute, int value)
SUCCEEDS(cuFuncSetCacheConfig, CUfunction function, CUfunc_cache config)
SUCCEEDS(cuStreamIsCapturing, CUstream stream, CUstreamCaptureStatus *status)
