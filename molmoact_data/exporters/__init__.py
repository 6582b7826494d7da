"""Our output in the formats that other programs read; one module per format, names in `choose`."""

from molmoact_data.exporters.choose import FORMATS as FORMATS
from molmoact_data.exporters.choose import Exported as Exported
from molmoact_data.exporters.choose import ExportOptions as ExportOptions
from molmoact_data.exporters.choose import export as export
