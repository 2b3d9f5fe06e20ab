"""Write the generated pages of this folder; `make docs`."""

from moeloom.tools.docs import main

main()
