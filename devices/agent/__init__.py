"""The programs that run on a device and measure there."""
