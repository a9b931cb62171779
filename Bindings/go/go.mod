module varve

go 1.19
