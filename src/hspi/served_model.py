"""What MLflow runs when it loads or serves the detector: this code and the bundle's files, never a pickle."""

from hspi.bundle import Bundle
from hspi.tracking.serving import serve_with

serve_with(Bundle.load)
