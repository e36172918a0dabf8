"""Virtual GPUs: records of what is emulated, kernel plans, and the adapter that computes with their arithmetic."""
