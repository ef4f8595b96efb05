"""The large audio language model (LALM): projector, decoder and LoRA.

model                    projector + decoder; the loss; saving and loading what was trained
decoder                  the language model: loaded, adapted, checked, and switched to packed attention
batch                    tokens; sequences packed into tensors
attention                attention over packed sequences, and over sequences that are being continued
llama                    the layers of decoders that are built like Llama, in fewer steps than transformers takes
operations               their differentiable operations: RMSNorm, rotary positions, taking and spreading positions
lora                     LoRA: trained additions to the decoder's linear layers
generation               greedy generation for many clips; finished rows make room for the next clips
token_steps              the next token of every text: tensors alone, recorded on a GPU
hugging_face_generation  the same by transformers, for decoders that cannot read packed sequences
"""
