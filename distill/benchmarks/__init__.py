"""What the performance bars are measured with: one module a benchmark, each with ``register`` for its subcommand of ``distill bench``."""

# In the order of `distill bench --help`; each is a module of this package.
BENCHMARKS: tuple[str, ...] = (
    "synth",
    "readers",
    "train",
    "metrics",
    "teacher",
    "cache",
    "export",
    "decoders",
)
