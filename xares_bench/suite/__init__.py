"""The one place where everything meets.

suite      lalm(mix), evaluate(dataset): found in the store, or made
pipeline   trains the LALM of a mix, scores a dataset with it
preflight  what tests need before they can run: checks, reuse, fetching
keys       what every result is filed under
"""
