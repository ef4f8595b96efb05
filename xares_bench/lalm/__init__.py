"""The large audio language model (LALM): projector, decoder and LoRA.

model                    projector + decoder; the loss; saving and loading what was trained
batch                    tokens, and sequences behind each other as tensors
attention                attention over packed sequences, and over those that are being continued
lora                     LoRA: what is trained of the decoder's linear layers
generation               greedy generation for many clips, rows leaving when their text ends
hugging_face_generation  the same by transformers, for decoders that cannot read packed sequences
"""
