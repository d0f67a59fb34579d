"""What training reports of itself, and when it must stop."""
