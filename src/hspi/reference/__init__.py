"""What the weights say in float64, and what each number format would change: each made once, then read."""
