"""Times PyTorch's attention on the same machine, forward and backward, so that the kernels have neighbors in the table.

Checks each backend against the math backend first. Events, medians, inputs rotated past the L2 cache.
Usage: python3 peers.py [length ...]
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

BACKENDS = {"FlashAttention-2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def median_ms(work, repeats):
    times = []
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work(i)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times[3:])[repeats // 2]


def inputs(heads, kv_heads, length, dim):
    def make(count):
        return torch.randn(1, count, length, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    return make(heads), make(kv_heads), make(kv_heads)


def attention(q, k, v):
    return sdpa(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def check(backend):
    q, k, v = inputs(4, 4, 512, 128)
    with sdpa_kernel(backend):
        out = attention(q, k, v)
    with sdpa_kernel(SDPBackend.MATH):
        expected = attention(q.double(), k.double(), v.double())
    error = ((out - expected).norm() / expected.norm()).item()
    assert error < 1e-2, f"{backend} is wrong by {error}"


def main():
    lengths = [int(x) for x in sys.argv[1:]] or [8192, 32768]
    print(torch.__version__, torch.cuda.get_device_name(0), "cuDNN", torch.backends.cudnn.version())
    print("| peer | heads | KV | D | S | forward ms | backward ms |")
    print("|---|---|---|---|---|---|---|")
    for name, backend in BACKENDS.items():
        check(backend)
        for length in lengths:
            for heads, kv_heads, dim in [(32, 32, 128)]:
                sets = [inputs(heads, kv_heads, length, dim) for _ in range(2)]
                repeats = 20 if length <= 8192 else 5
                with sdpa_kernel(backend):
                    forward = median_ms(lambda i: attention(*sets[i % 2]), repeats)
                    outs = [attention(*s) for s in sets]
                    grads = [torch.randn_like(o) for o in outs]
                    backward = median_ms(
                        lambda i: torch.autograd.grad(outs[i % 2], sets[i % 2], grads[i % 2], retain_graph=True),
                        repeats,
                    )
                print(f"| {name} | {heads} | {kv_heads} | {dim} | {length} | {forward:.3f} | {backward:.3f} |", flush=True)


if __name__ == "__main__":
    main()
