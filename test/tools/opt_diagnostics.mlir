// Without --verify-diagnostics: errors on stderr with their place in the file, the good parts printed, exit code 1.
// RUN: not moeloom-opt %s --split-input-file >%t.out 2>%t.err
// RUN: filecheck %s --check-prefix=ERR --input-file %t.err
// RUN: filecheck %s --check-prefix=OUT --input-file %t.out
// ERR: {{.*}}opt_diagnostics.mlir:21:10: error: 'moe.quant' kind is 'per_row'
// ERR: {{.*}}opt_diagnostics.mlir:27:3: error: custom op 'what' is unknown
// OUT: @first
// OUT: // -----
// OUT: @last

// Each expectation that is missed and each diagnostic that nothing expects is a line, and a failure.
// RUN: not moeloom-opt %s --split-input-file --verify-diagnostics 2>&1 | filecheck %s --check-prefix=WRONG
// WRONG-NOT: @first
// WRONG: {{.*}}opt_diagnostics.mlir:27:3: error: unexpected error: custom op 'what' is unknown
// WRONG: {{.*}}opt_diagnostics.mlir:26:1: error: expected error "another message" was not produced on line 27
// WRONG: {{.*}}opt_diagnostics.mlir:32:1: error: expected remark "nothing says this" was not produced on line 33
func.func @first() { return }
// -----
func.func @second(%x: tensor<?x64xbf16>) {
  // expected-error@below {{'moe.quant' kind is 'per_row'}}
  %q:2 = "moe.quant"(%x) {kind = "per_row", scale_mode = "even"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}
// -----
func.func @third() {
  // expected-error@below {{another message}}
  what
  return
}
// -----
func.func @last() {
  // expected-remark@+1 {{nothing says this}}
  return
}
