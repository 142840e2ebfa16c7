"""The HTTP service: text and picture search over galleries.

`create_app(settings)` in `service.app` builds the application, `service.server.serve` runs it.
"""
