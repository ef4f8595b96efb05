"""A trial of the benchmark with real parts: a pretrained decoder, a pretrained encoder, speech and tar files."""
