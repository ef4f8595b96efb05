"""The user's encoder: loaded, checked and identified.

loading                load, freeze and call the user's module
returned               what it returns, checked on every call
contract               the check of the encoder's contract, clause by clause
contract_probes        probe clips, and comparisons of their features
contract_report        what became of every clause, as data and as JSON
shortest_clip          how short a clip an encoder takes
clauses                names and sentences of the contract (no torch)
identity               what the encoder is and does: the fingerprint in every key
fingerprint            its structure: source, arguments, weights, settings, libraries
held_state             digests of whatever objects hold: tensors, arrays, numbers, graphs
main_code              code of an encoder that is defined in a notebook or a script
hugging_face           a Hugging Face audio model as an encoder
hugging_face_families  how clips get through models of each type
hugging_face_models    Hugging Face audio models: located, checked, loaded
"""
