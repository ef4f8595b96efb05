"""The tests of the benchmark, for pytest to collect: `pytest bench` or `pytest --pyargs xares_bench.bench`."""
