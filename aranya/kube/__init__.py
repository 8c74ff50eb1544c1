"""Speaks to the API server, and knows no device.

Reading order: ``credentials`` > ``client`` > ``watch`` > ``informer`` > ``queue``.
``memory`` is an API server for tests, behind the true client.
"""
