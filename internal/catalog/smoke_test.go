package catalog
import ("testing";catalogdata "github.com/bulkhead-dev/bulkhead/catalog")
func TestSmoke(t *testing.T){ _,err:=Load(catalogdata.Services); if err!=nil {t.Fatal(err)} }
func BenchmarkParse(b *testing.B){ for _,n:=range Default().Names(){ b.Run(n,func(b *testing.B){ for b.Loop(){ c,_:=open(catalogdata.Services); if _,err:=c.load(n);err!=nil{b.Fatal(err)} } }) } }
