from spectrim.cli import main

main()
