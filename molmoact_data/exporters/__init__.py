"""Our output in the formats that other programs read; one module per format, names in `choose`."""

from molmoact_data.exporters.choose import (
    FORMATS as FORMATS,
    Exported as Exported,
    ExportOptions as ExportOptions,
    export as export,
)
