"""Scripts that run apart from hspi, in a server's own environment. They import nothing of hspi, nor it of them."""
