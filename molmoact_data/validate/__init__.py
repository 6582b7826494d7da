"""Hold an output to its own schema and manifest; see `run.validate`."""

from molmoact_data.validate.findings import Finding as Finding, Problem as Problem, Report as Report
from molmoact_data.validate.run import validate as validate
