"""From pixels to visual tokens: ResNet, pooling, the visual dictionary."""
