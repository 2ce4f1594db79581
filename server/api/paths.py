"""Where the API lives."""

PATH = "/api/v1/integrations"
