// Compiles only while a real GPUDevice can be lent to the engine.

/// <reference types="@webgpu/types" />
import type { GpuDeviceLike } from "../src/device.js";

export const lend = (device: GPUDevice): GpuDeviceLike => device;
