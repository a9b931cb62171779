module emulator

go 1.19

require varve v0.0.0

replace varve => ../../Bindings/go
