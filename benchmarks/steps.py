"""Training steps of the tutorial's net: with and without telling glibc to keep its pages.

Each setting runs in a process of its own, in turn, since the allocator cannot be told twice.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from rows import append

ROUNDS = 3
STEP = """
import sys, time, torch
from whatwhere.losses import masked_mean, pixel_losses
from whatwhere.machine import keep_pages, threads
from whatwhere.nn.build import build_model
from whatwhere.train.optim import KerasAdam
if sys.argv[1] == "kept":
    keep_pages()
torch.set_num_threads(threads())
torch.manual_seed(0)
net = build_model("tutorial").train()
adam = KerasAdam(net.parameters())
image = torch.randn(32, 1, 128, 128)
labels = torch.randint(0, 2, (32, 128, 128))
valid = torch.ones(32, 128, 128, dtype=torch.bool)
for step in range(8):
    if step == 2:
        started = time.perf_counter()
    loss, _ = masked_mean(pixel_losses(net(image), labels, "binary"), valid)
    adam.zero_grad()
    loss.backward()
    adam.step()
print(6 * 32 / (time.perf_counter() - started))
"""


def images_per_second(setting: str) -> float:
    """Train a few steps of 32 images of 128 by 128 in a fresh process."""
    words = [sys.executable, "-c", STEP, setting]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and keep a row."""
    pairs = [(images_per_second("kept"), images_per_second("plain")) for _ in range(ROUNDS)]
    append(
        "steps",
        what="tutorial net, batch 32 of 128x128, pages kept / not kept",
        pairs=ROUNDS,
        ratio_median=round(statistics.median(a / b for a, b in pairs), 3),
        kept_images_s=round(statistics.median(a for a, _ in pairs), 2),
        plain_images_s=round(statistics.median(b for _, b in pairs), 2),
    )


if __name__ == "__main__":
    main()
