"""Evaluating datasets: finds results in the cache and computes the missing ones.

suite       lalms(mix), evaluate(dataset), robustness(dataset, corruption): from the cache, or computed by the pipeline
pipeline    trains the LALM of a mix, generates texts with it and scores them
score_store scores of datasets, clean and corrupted: found in the store, or computed by the pipeline
texts       the texts of a test set, stored part by part until it is scored
preflight   what datasets need before their tests: checks, cached results, downloads
data_check  walks the shards of datasets, and finds what is wrong with them
seeds       one score from those of several training seeds
manifest    what results.json says about a run
keys        cache keys: digests of everything that a result depends on
"""
