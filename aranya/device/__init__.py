"""The back door: where devices join, connect and are found; knows no controller and no kubelet."""
