//! Libraries with CUDA's names that find a device and compute nothing, for tests of what a machine may lack; the environment says what this one
//! does. Only what opening a device calls is here.

#include <stdlib.h>

#define OK(name) int name(void) { return 0; }

static int number(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

#if defined(CUDA)

static char anything;

int cuDriverGetVersion(int* version) { return *version = number("FAKE_DRIVER", 13000), 0; }
int cuInit(unsigned flags) { return number("FAKE_DEVICES", 1) > 0 ? 0 : 100; }
int cuDeviceGetCount(int* count) { return *count = number("FAKE_DEVICES", 1), 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char* name, int room, int device) { return name[0] = 'F', name[1] = 0, 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = (size_t)1 << 34, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? number("FAKE_MAJOR", 9) : attribute == 76 ? 0 : 1;
    return 0;
}
int cuDeviceGetDefaultMemPool(void** pool, int device) { return *pool = &anything, 0; }
int cuMemPoolSetAttribute(void* pool, int attribute, void* value) { return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &anything, 0; }
int cuCtxGetCurrent(void** context) { return *context = &anything, 0; }
int cuStreamCreate(void** stream, unsigned flags) { return *stream = &anything, 0; }
int cuModuleLoadData(void** module, const void* image) { return *module = &anything, 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) { return *function = &anything, 0; }
int cuMemAllocAsync(void** memory, size_t bytes, void* stream) { return *memory = &anything, number("FAKE_FULL", 0) ? 2 : 0; }
OK(cuCtxSetCurrent)
OK(cuFuncSetAttribute)
OK(cuStreamSynchronize)
OK(cuStreamDestroy_v2)
OK(cuModuleUnload)
OK(cuMemFreeAsync)
OK(cuDevicePrimaryCtxRelease_v2)
OK(cuGetErrorString)

#elif defined(NVRTC)

int nvrtcVersion(int* major, int* minor) { return *major = number("FAKE_NVRTC", 13), *minor = 8, 0; }
int nvrtcGetCUBINSize(void* program, size_t* bytes) { return *bytes = 4, 0; }
OK(nvrtcCreateProgram)
OK(nvrtcCompileProgram)
OK(nvrtcGetCUBIN)
OK(nvrtcDestroyProgram)

#elif defined(CUBLASLT)

size_t cublasLtGetVersion(void) { return (size_t)number("FAKE_CUBLASLT", 130000); }
OK(cublasLtCreate)
OK(cublasLtDestroy)

#endif
