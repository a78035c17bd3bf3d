"""Made-up scans: a CT-like abdomen to try the whole of radiodata on, without downloading anything."""
