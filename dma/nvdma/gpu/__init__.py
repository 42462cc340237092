"""How is a GPU's memory filled, and its work ordered? Few calls of its driver, memory kinds and fences over them."""
