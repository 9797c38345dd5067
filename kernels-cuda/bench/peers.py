"""Times PyTorch's attention on the same machine, so that the kernels of `examples/bench.rs` have neighbors in the table.

Prefill and backward by scaled_dot_product_attention (FlashAttention-2, cuDNN), the same ragged spans by FlexAttention, and dense
decode. Each backend is checked against double precision first. Events, medians, inputs rotated past the L2 cache.
Usage: python3 peers.py [length ...]
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

BACKENDS = {"FlashAttention-2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
SINK = 64


def median_ms(work, repeats, steps=1):
    times = []
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for j in range(steps):
            work(i * steps + j)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / steps)
    return sorted(times[3:])[repeats // 2]


def tensor(batch, heads, length, dim, grad=True):
    return torch.randn(batch, heads, length, dim, device="cuda", dtype=torch.bfloat16, requires_grad=grad)


def attention(q, k, v):
    return sdpa(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1])


def check(backend):
    q, k, v = (tensor(1, 4, 512, 128) for _ in range(3))
    with sdpa_kernel(backend):
        out = attention(q, k, v)
    with sdpa_kernel(SDPBackend.MATH):
        expected = attention(q.double(), k.double(), v.double())
    error = ((out - expected).norm() / expected.norm()).item()
    assert error < 1e-2, f"{backend} is wrong by {error}"


def prefill(lengths):
    print("\n| peer | heads | KV | D | S | forward ms | backward ms |")
    print("|---|---|---|---|---|---|---|")
    for name, backend in BACKENDS.items():
        check(backend)
        for length in lengths:
            sets = [tuple(tensor(1, 32, length, 128) for _ in range(3)) for _ in range(2)]
            repeats = 20 if length <= 8192 else 5
            with sdpa_kernel(backend):
                forward = median_ms(lambda i: attention(*sets[i % 2]), repeats)
                outs = [attention(*s) for s in sets]
                grads = [torch.randn_like(o) for o in outs]
                backward = median_ms(
                    lambda i: torch.autograd.grad(outs[i % 2], sets[i % 2], grads[i % 2], retain_graph=True),
                    repeats,
                )
            print(f"| {name} | 32 | 32 | 128 | {length} | {forward:.3f} | {backward:.3f} |", flush=True)


def decode():
    print("\n| peer, dense decode | heads | KV | D | batch | S | us | GB/s |")
    print("|---|---|---|---|---|---|---|---|")
    for batch, kv_heads, length in [(64, 8, 16384), (16, 32, 8192), (1, 32, 32768), (1, 8, 16384)]:
        sets = [tuple(tensor(batch, kv_heads, length, 128, False) for _ in range(2)) for _ in range(2)]
        q = tensor(batch, 32, 1, 128, False)
        size = 2 * sets[0][0].numel() * 2
        for name, backend in BACKENDS.items():
            try:
                with sdpa_kernel(backend):
                    ms = median_ms(lambda i: attention(q, *sets[i % 2]), 9, steps=10)
                print(f"| {name} | 32 | {kv_heads} | 128 | {batch} | {length} | {ms * 1e3:.1f} | {size / ms / 1e6:.0f} |", flush=True)
            except RuntimeError as error:
                print(f"| {name} | 32 | {kv_heads} | 128 | {batch} | {length} | {str(error).splitlines()[0][:60]} | |")


def flex(lengths):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention)
    print("\n| FlexAttention, ragged spans | heads | S | density | forward ms |")
    print("|---|---|---|---|---|")
    for length in lengths:
        for density in (0.5, 0.25):
            parts = density * (0.5 + torch.arange(32, device="cuda") / 31)
            windows = torch.round(parts * length / 64).int() * 64 - SINK

            def mask(b, h, i, j):
                return (j <= i) & ((j < SINK) | (i - j < windows[h]))

            blocks = create_block_mask(mask, 1, 32, length, length, device="cuda", _compile=True)
            sets = [tuple(tensor(1, 32, length, 128, False) for _ in range(3)) for _ in range(2)]
            ms = median_ms(lambda i: compiled(*sets[i % 2], block_mask=blocks), 9)
            print(f"| FlexAttention | 32 | {length} | {density} | {ms:.3f} |", flush=True)


def main():
    lengths = [int(x) for x in sys.argv[1:]] or [8192, 32768]
    print(torch.__version__, torch.cuda.get_device_name(0), "cuDNN", torch.backends.cudnn.version())
    prefill(lengths)
    decode()
    try:
        flex(lengths)
    except Exception as error:  # a peer that cannot run is told, not fatal
        print("FlexAttention did not run:", str(error).splitlines()[0])


if __name__ == "__main__":
    main()
