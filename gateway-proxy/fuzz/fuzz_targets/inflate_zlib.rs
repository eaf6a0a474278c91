#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_proxy_fuzz::inflate_zlib(data));
