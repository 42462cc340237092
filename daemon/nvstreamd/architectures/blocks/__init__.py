"""Which parts are layers made of? Each block is a few steps that add to the hidden state, and asks for its tensors."""
