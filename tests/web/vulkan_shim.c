// A Vulkan driver for tests that forwards every call to Mesa's lavapipe and only changes the PCI ids.
//
// Headless Chromium accepts one software Vulkan device for WebGPU, SwiftShader, and recognizes it by
// vendor and device id. lavapipe is many times faster and has shader-f16, so the tests put this shim
// where Chromium looks for SwiftShader and name the real driver library in the variable LVP_SO.
// Nothing else is touched, and nothing that ships contains or needs this file.
//
// gcc -O2 -shared -fPIC -fvisibility=hidden -o libvk_swiftshader.so vulkan_shim.c -ldl

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// The few declarations of the Vulkan loader interface that are needed, so that no headers are.
typedef void (*Function)(void);
typedef Function (*GetProcAddr)(void *instance, const char *name);
typedef int32_t (*Negotiate)(uint32_t *version);

#define EXPORT __attribute__((visibility("default")))

enum {
    VENDOR_SWIFTSHADER = 0x1AE0,
    DEVICE_SWIFTSHADER = 0xC0DE,
    DEVICE_TYPE_CPU = 4,
    LOADER_INTERFACE_VERSION = 5,
    ERROR_INITIALIZATION_FAILED = -3,
    // VkPhysicalDeviceProperties as 32-bit words: apiVersion, driverVersion, then these.
    WORD_VENDOR_ID = 2,
    WORD_DEVICE_ID = 3,
    WORD_DEVICE_TYPE = 4,
    // VkPhysicalDeviceProperties2 begins with sType (padded) and pNext.
    BYTES_BEFORE_PROPERTIES = 16,
};

static GetProcAddr driver_instance_proc;
static GetProcAddr driver_physical_proc;
static Negotiate driver_negotiate;
static void (*driver_properties)(void *device, uint32_t *properties);
static void (*driver_properties2)(void *device, uint8_t *properties);

// Loads the real driver once. The loader calls single-threaded before the first instance exists.
static void load_driver(void) {
    if (driver_instance_proc) return;
    const char *path = getenv("LVP_SO");
    void *library = dlopen(path ? path : "libvulkan_lvp.so", RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    driver_instance_proc = (GetProcAddr)dlsym(library, "vk_icdGetInstanceProcAddr");
    driver_physical_proc = (GetProcAddr)dlsym(library, "vk_icdGetPhysicalDeviceProcAddr");
    driver_negotiate = (Negotiate)dlsym(library, "vk_icdNegotiateLoaderICDInterfaceVersion");
}

static void pretend(uint32_t *properties) {
    properties[WORD_VENDOR_ID] = VENDOR_SWIFTSHADER;
    properties[WORD_DEVICE_ID] = DEVICE_SWIFTSHADER;
    properties[WORD_DEVICE_TYPE] = DEVICE_TYPE_CPU;
}

static void get_properties(void *device, uint32_t *properties) {
    driver_properties(device, properties);
    pretend(properties);
}

static void get_properties2(void *device, uint8_t *properties) {
    driver_properties2(device, properties);
    pretend((uint32_t *)(properties + BYTES_BEFORE_PROPERTIES));
}

// Puts our two functions before the driver's; all others pass through.
static Function hook(const char *name, Function found) {
    if (!found) return found;
    if (!strcmp(name, "vkGetPhysicalDeviceProperties")) {
        driver_properties = (void (*)(void *, uint32_t *))found;
        return (Function)get_properties;
    }
    if (!strcmp(name, "vkGetPhysicalDeviceProperties2") || !strcmp(name, "vkGetPhysicalDeviceProperties2KHR")) {
        driver_properties2 = (void (*)(void *, uint8_t *))found;
        return (Function)get_properties2;
    }
    return found;
}

EXPORT Function vk_icdGetInstanceProcAddr(void *instance, const char *name) {
    load_driver();
    if (!driver_instance_proc) return NULL;
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (Function)vk_icdGetInstanceProcAddr;
    return hook(name, driver_instance_proc(instance, name));
}

EXPORT Function vkGetInstanceProcAddr(void *instance, const char *name) {
    return vk_icdGetInstanceProcAddr(instance, name);
}

EXPORT Function vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
    load_driver();
    return driver_physical_proc ? hook(name, driver_physical_proc(instance, name)) : NULL;
}

EXPORT int32_t vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
    load_driver();
    if (!driver_negotiate) return ERROR_INITIALIZATION_FAILED;
    // A version that the driver is known to speak, before the loader proposes its own.
    uint32_t wanted = LOADER_INTERFACE_VERSION;
    driver_negotiate(&wanted);
    return driver_negotiate(version);
}
