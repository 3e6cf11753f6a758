"""What the timings of gpu.py should reach: the least median ratio of each. The page shows them before they are run."""

GPU_TARGETS = {
    "deep memory, forward": 0.35,
    "deep memory, forward and backward": 0.35,
    "layer of deep memory, forward, against titans-pytorch with chunks of 64": 10.0,
    "layer of deep memory, forward and backward, against titans-pytorch with chunks of 64": 10.0,
    # At most 1.3 times its time, for a rule that carries momentum besides.
    "titans-linear, forward, against the gated delta rule of flash-linear-attention": 1 / 1.3,
    "titans-linear, forward and backward, against the gated delta rule of flash-linear-attention": 1 / 1.3,
}
